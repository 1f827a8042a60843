"""Requests and responses as pydantic models: they check what comes in and make the OpenAPI document useful."""
