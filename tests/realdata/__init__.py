"""The pipeline on real images: harnesses that degrade, inject, run and judge, and their tests."""
