"""The checks of papers: a file a paper, see `hasten.papers.experiment`."""
