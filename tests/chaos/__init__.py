"""Chaos: parts of a farm are killed, or fail, at random moments, until every job is done."""
