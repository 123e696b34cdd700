"""Adapters: Headway's managers under the names of other engines. An adapter imports managers and the core; no other
folder imports an adapter."""
