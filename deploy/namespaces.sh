#!/usr/bin/env bash
# Four machines on one: network namespaces for a coordinator and three hospitals. Needs root.
#   deploy/namespaces.sh up | down
#   ip netns exec hospital-a COMMAND
set -euo pipefail
machines=(coordinator hospital-a hospital-b hospital-c)
addresses=(192.0.2.10 192.0.2.11 192.0.2.12 192.0.2.13)

down() {
  for machine in "${machines[@]}" clues-switch; do
    ip netns del "$machine" 2>/dev/null || true
    rm -rf "/etc/netns/$machine"
  done
}

up() {
  ip netns add clues-switch
  ip -n clues-switch link add switch type bridge
  ip -n clues-switch link set switch up
  for i in "${!machines[@]}"; do
    machine=${machines[$i]}
    ip netns add "$machine"
    ip link add "clues$i" netns clues-switch type veth peer name eth0 netns "$machine"
    ip -n clues-switch link set "clues$i" master switch up
    ip -n "$machine" link set lo up
    ip -n "$machine" link set eth0 up
    ip -n "$machine" address add "${addresses[$i]}/24" dev eth0
    mkdir -p "/etc/netns/$machine"
    printf '127.0.0.1 localhost\n192.0.2.10 fl.example.org\n' >"/etc/netns/$machine/hosts"
  done
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
