"""Memories: network × objective × rule over a sequence."""
