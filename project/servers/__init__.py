"""Real servers for the demo and the tests: a private Redis or Valkey, PostgreSQL and RabbitMQ.

Nothing here touches a server that it did not start, nor a folder that it did not make.
"""

from project.servers.base import Server, ServerUnavailable, free_port
from project.servers.postgres import PostgresServer, postgres_server
from project.servers.rabbitmq import GivenRabbitmq, RabbitmqServer, given_rabbitmq, rabbitmq_server
from project.servers.redis import RedisServer, redis_server

__all__ = [
    "GivenRabbitmq",
    "PostgresServer",
    "RabbitmqServer",
    "RedisServer",
    "Server",
    "ServerUnavailable",
    "free_port",
    "given_rabbitmq",
    "postgres_server",
    "rabbitmq_server",
    "redis_server",
]
