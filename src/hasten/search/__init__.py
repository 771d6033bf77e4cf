"""Finding the best of what may be chosen: spaces, problems, samplers, and the study that joins them."""

from hasten.search.problem import Infeasible, Objective, Problem, Trial, pareto
from hasten.search.samplers import make_sampler, register, samplers
from hasten.search.space import Parameter, Space, categorical, integer, real
from hasten.search.study import Study, StudyResult

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
    "pareto",
    "real",
    "register",
    "samplers",
]
