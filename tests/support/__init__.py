"""Helpers that the tests of more than one room use: toys, samples, attacks, simulated devices."""
