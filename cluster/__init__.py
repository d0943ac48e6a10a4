"""Starts things: a Ray head, an MLflow server. Imports none of the other folders."""
