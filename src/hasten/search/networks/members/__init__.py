"""Spaces of networks, a file each; `hasten.search.networks.architecture_space` finds them by this folder."""
