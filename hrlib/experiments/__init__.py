"""The runs behind tables and figures, all through `sweep`.

sweep        many runs of one task, on any number of workers; results are kept in build/sweeps
sweep_keys   what such a run depends on: when it is repeated      sweep_workers   where runs are performed
inversions   pictures x losses x inputs x seeds (Table II)        galleries    the codes of many pictures
layerwise    inversions whose hair is measured (Fig. 12)
stylisation  one content, one reference, mixed and optimised      syntheses    variants over pairs of them
table3       methods compared by ID retrieval and FID             table1       what training and inversion cost
panoramas    large pictures within a given memory
"""
