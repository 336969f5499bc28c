"""Searching schedules: `tvmflow tune`. MetaSchedule is the engine; budget, processes and records are looked after here.

`tasks` are the kernels to tune, `space` what may be tried on each, `transfer` what earlier searches know of such,
`builders` compile a candidate and `measure` times it in `processes` of their own (`worker`), `session` decides what is
tried next, `store` keeps every result, `exchange` carries results between stores, `apply` gives them to a build.
"""
