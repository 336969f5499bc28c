"""Comparisons with what people would use instead. Ratios of one run count; absolute figures are of one machine."""
