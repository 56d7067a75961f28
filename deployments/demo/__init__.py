"""A demo film: its renderer, and a script that sends it through a farm."""
