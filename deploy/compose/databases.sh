#!/usr/bin/env bash
# Run once by the postgres image, when it has made its cluster: a database for each service, and a user who owns that alone.
set -euo pipefail

for service in order payment stock; do
  psql --username=postgres --set=ON_ERROR_STOP=1 --set=name="$service" --set=database="${service}db" \
    --set=password="$POSTGRES_PASSWORD" <<'SQL'
create role :"name" login password :'password';
create database :"database" owner :"name";
revoke all on database :"database" from public;
SQL
done
