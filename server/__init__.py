"""The side that never sees a patient: recipe, rounds, aggregation, checkpoints."""
