"""The apps of a federation by a configuration file.

It is the demonstration that ships with florist, unless the run names another file.
"""
