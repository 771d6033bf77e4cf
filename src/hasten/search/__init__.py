"""Finding the best of what may be chosen: spaces, problems, samplers, and the study that joins them."""

from hasten.search.parameter import Parameter, categorical, integer, ordinal, real
from hasten.search.problem import Infeasible, Objective, Problem, Trial, pareto
from hasten.search.samplers import make_sampler, register, samplers
from hasten.search.space import Space
from hasten.search.study import Study
from hasten.search.study_result import StudyResult

__all__ = [
    "Infeasible",
    "Objective",
    "Parameter",
    "Problem",
    "Space",
    "Study",
    "StudyResult",
    "Trial",
    "categorical",
    "integer",
    "make_sampler",
    "ordinal",
    "pareto",
    "real",
    "register",
    "samplers",
]
