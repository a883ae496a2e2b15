"""Real servers for the demo and the tests: a private Redis or Valkey and a private PostgreSQL.

Nothing here touches a server that it did not start, nor a folder that it did not make.
"""

from project.servers.base import Server, ServerUnavailable, free_port
from project.servers.postgres import PostgresServer, postgres_server
from project.servers.redis import RedisServer, redis_server

__all__ = [
    "PostgresServer",
    "RedisServer",
    "Server",
    "ServerUnavailable",
    "free_port",
    "postgres_server",
    "redis_server",
]
