"""Benchmarks of hp_norm_plugin against the implementations that a user could pick instead."""
