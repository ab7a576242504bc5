"""Rounds whose single updates the server cannot see: sums under masks, after Bonawitz et al. (CCS 2017).

A round has four phases. Clients publish fresh keys (`keys`), from which the server makes the roster (`roster`). Each
client sends a share of its secrets to each other client, sealed for it (`shares`). It then sends its update as integers
under masks that cancel in the sum (`fixed_point`, `layout`, `masks`). In the last phase, those who are left reveal the
shares that the server needs to take the other masks off (`unmasking`).

Everything here is a pure function of bytes and integers: it knows neither models nor networks.
"""
