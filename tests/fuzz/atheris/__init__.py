"""Harnesses for atheris, which lets coverage choose the input. They are programs, and no part of the test suite."""
