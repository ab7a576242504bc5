"""One page of a run, a comparison or an aggregate: HTML that works offline, and its figures as files.

It needs Vega-Altair, vl-convert and Jinja (the extra ``report``) and no library that trains.
"""
