"""What is done with fitted functions, one verb a file: fit, compare, soup, join, bench."""
