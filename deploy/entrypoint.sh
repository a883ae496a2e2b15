#!/bin/sh
# Start one process of Mainstay by its name; anything else is run as it is given.
set -eu

role="${1:-web}"
[ "$#" -eq 0 ] || shift
# The health check of the image asks this file which process it is to look at.
echo "$role" > "${MAINSTAY_ROLE_FILE:-/tmp/mainstay-role}"

case "$role" in
web)
    exec gunicorn project.wsgi --bind 0.0.0.0:8000 --worker-tmp-dir /dev/shm --no-control-socket \
        --access-logfile - "$@"
    ;;
worker)
    # SIGTERM then means: take nothing new, let running jobs finish for a while, hand the others back.
    export REMAP_SIGTERM=SIGQUIT
    exec celery --app project worker --loglevel INFO --concurrency "${WORKER_CONCURRENCY:-4}" "$@"
    ;;
beat)
    exec celery --app project beat --loglevel INFO --enable-remote-control "$@"
    ;;
conductor)
    exec python manage.py conductor "$@"
    ;;
flower)
    : "${FLOWER_BASIC_AUTH:?Set FLOWER_BASIC_AUTH=user:password; Flower can stop workers and is not started open.}"
    export FLOWER_BASIC_AUTH
    exec celery --app project flower --address=0.0.0.0 --port=5555 "$@"
    ;;
migrate)
    exec python manage.py migrate --noinput "$@"
    ;;
*)
    exec "$role" "$@"
    ;;
esac
