"""A kind of target that nobody has: the folder that test_house.py adds, to see that it needs two lines and no more."""
