"""Small valid data sets of each format, and seeded changes to them: what tools, file systems and hands do to data.

A mutation is of a kind (what it touches) and has a name. A benign one leaves what the data mean as it is, so every
object must still be there.
"""

# the order in which they are registered is the order that a seed draws from
from benchmarks.mutations import files, coco, voc, labelme, rows, raw  # noqa: F401, I001
from benchmarks.mutations.sets import FORMATS, JSON_DIRT, DataSet, Mutation, applicable, make_set, pick

__all__ = ["FORMATS", "JSON_DIRT", "DataSet", "Mutation", "applicable", "make_set", "pick"]
