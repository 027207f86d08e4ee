"""Tests of toolchain/bundle; the samples and attacks beside them are shared by relative import."""
