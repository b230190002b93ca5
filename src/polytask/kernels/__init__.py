"""Loops that tensor programs do badly, compiled by Numba at their first call, each beside a plain form in PyTorch.

The plain form is the reference: same arguments, same results, held by tests. Nothing outside needs to know which
one runs.
"""
