# Three images of one build: docker build --target order -t saga-order . (payment, stock)
#
# The binaries need libc and libgcc_s and nothing else, so the images have no shell and no package manager; they do have the
# system's certificate authorities, for TLS.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p order -p payment -p stock

# of the Debian that they were built on; runs as the user nonroot (65532)
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
ENV BIND=0.0.0.0

FROM runtime AS order
COPY --from=build /src/target/release/order /service
EXPOSE 8080
ENTRYPOINT ["/service"]

FROM runtime AS payment
COPY --from=build /src/target/release/payment /service
EXPOSE 8082
ENTRYPOINT ["/service"]

FROM runtime AS stock
COPY --from=build /src/target/release/stock /service
EXPOSE 8081
ENTRYPOINT ["/service"]
