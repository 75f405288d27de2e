"""The arena: methods with one reference, one log and one budget, held to an optimum and to each other.

A suite (`bandit`, `exact`) is a world and the methods that compete in it. What is to be run falls into cells,
each a JSON file; the tables are pure functions of the cells that are there.
"""
