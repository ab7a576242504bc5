"""A federation by a configuration file: the demonstration that ships with florist, unless the run names another."""
