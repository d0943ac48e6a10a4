"""Starts a Ray head and an MLflow server, and estimates what a training takes. Imports none of the other folders."""
