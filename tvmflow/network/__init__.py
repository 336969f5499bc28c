"""A trained network, in whatever form it comes, becomes a Program: readers, and what they share."""
