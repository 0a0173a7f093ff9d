# The commands of this repository. The logic is in scripts/; `make` only names it.
#
#   make setup   packages, binaries, images: everything the two below need
#   make up      set up, start the server, demonstrate it, leave it running
#   make down    stop the server and everything it runs
#   make kernel  build the small guest kernel (about ten minutes); the server then uses it
#   make test    set up, lint, and every test
#   make bench   what the platform costs on top of the bare hypervisor (about ten minutes)
#   make lint    formatting, clippy, cargo-deny
#   make clean   remove what is built and kept here (asks the server to stop first)

.PHONY: setup up down kernel test bench lint clean

setup:
	@scripts/setup

up: setup
	@scripts/up

down:
	@scripts/down

kernel:
	@scripts/kernel

test: setup
	@scripts/test

bench:
	@scripts/bench $(BENCH)

lint:
	@scripts/lint

clean: down
	rm -rf target var
