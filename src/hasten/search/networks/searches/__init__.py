"""Searches of networks by name: each is a function of `hasten.search.networks.searching.NetworkSearch`'s form."""
