"""Recommenders made of shards: training, exact forgetting by restarting what is hit, answering together."""
