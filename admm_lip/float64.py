"""What every proof knows of double precision: its unit roundoff, and what underflow takes."""

U = 2.0**-53
# More than what underflow takes from a sum of 2^70 products.
TINY = 2.0**-1000
# More than what a length loses where the squares of its entries underflow.
SQUARED_AWAY = 2.0**-500
# More than what underflow takes from a bound whose terms are scaled to about 1.
FLOOR = 2.0**-600


def gamma(terms: int) -> float:
    """The relative error that ``terms`` roundings in a row may add up to."""
    return terms * U / (1.0 - terms * U)
