# Functions around apt-get, for scripts/setup, demo-setup and examples-setup, which source this file.
#
#   apt_can_install    whether packages can be installed: there is apt-get, and this is root or a sudo without password
#   apt_size PACKAGE…  what installing them downloads, "118 MB"
#   apt_install LABEL PACKAGE…
#                      says what it does and how much it downloads, then does it. What apt-get prints goes to $apt_log
#   apt_candidate PACKAGE
#                      the version that apt-get would install, without the epoch; nothing if it does not know the package
#
# The caller sets apt_log to a file, and removes it.

apt_root=()
apt_updated=

apt_can_install() {
    type -P apt-get >/dev/null || return 1
    if ((EUID == 0)); then
        apt_root=()
    elif sudo -n true 2>/dev/null; then
        apt_root=(sudo -n)
    else
        return 1
    fi
}

# A lock held by an update in the background is waited for. NEEDRESTART_SUSPEND: Ubuntu's needrestart would ask a
# question.
apt_run() {
    # shellcheck disable=SC2154 # the caller sets apt_log
    "${apt_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$apt_log" 2>&1
}

# Once a run. An unreachable source of somebody else's must not stop us; if it matters, the install says so.
apt_update() {
    [[ -z $apt_updated ]] || return 0
    apt_updated=yes
    echo "$1: apt-get update (downloads lists of packages, some 10 MB)"
    apt_run update || echo "$1: apt-get update met errors, going on with the lists there are" >&2
}

apt_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -nE 's/^ *Candidate: ([0-9]+:)?([0-9][0-9.]*).*/\2/p'
}

apt_size() {
    apt-get install -y --no-install-recommends --print-uris "$@" 2>/dev/null |
        awk "/^'/ { bytes += \$3 } END { printf \"%d MB\", (bytes + 999999) / 1000000 }"
}

apt_install() {
    local label=$1
    shift
    apt_update "$label"
    echo "$label: installing by apt-get: $* (downloads $(apt_size "$@"), takes a minute or two)"
    apt_run install -y --no-install-recommends "$@"
}
