"""What checks the annotations of florist while the tests run: beartype, told that an int is a float (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
