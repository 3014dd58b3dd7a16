"""The parts that models are made of: adaptable products, tables, norms, dropout, interactions."""
