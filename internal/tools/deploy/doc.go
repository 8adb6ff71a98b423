// Package deploy checks deploy/: what it has can be run, and fits together.
//
// Its tests read the files as those would who use them: Helm's engine renders
// the chart and Kubernetes' types decode the result strictly, compose-go loads
// the composition, BuildKit parses and lints the Dockerfile, systemd-analyze
// (or where there is none, the parser of go-systemd) the units. Every command
// line and every variable in them is tried on the real binary, which is built
// first.
//
// It runs no container, and asks no Kubernetes: whether an admission controller
// likes the objects, and whether a node has the ports, it cannot tell.
package deploy
