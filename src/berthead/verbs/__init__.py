"""Operations on fitted functions, one file each: fit, compare, soup, join, bench."""
