# shellcheck shell=bash
# What scripts/prove-service and scripts/prove-machine share; they source it. FOLDER is theirs.

fail() {
    echo "scripts/${0##*/}: $*" >&2
    exit 1
}

# The comment at the beginning of the script.
usage() {
    sed -n '/^# Proves/,/^set -/{s/^# \{0,1\}//p}' "scripts/${0##*/}" >&2
    exit 2
}

need_root() {
    ((EUID == 0)) || fail "has to run as root: it $1"
}

need_packages() {
    local package
    local -a missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]} > 0)) || return 0
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Makes FOLDER, for one proof at a time.
take_folder() {
    mkdir -p "$FOLDER"
    exec 9>"$FOLDER/lock"
    flock --nonblock 9 || fail "another one is running in $FOLDER"
}

# Says where the package of revision $1 for architecture $2 is.
package_of() {
    local version
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    echo "dist/holdfast_${version/-/\~}-$1_$2.deb"
}

# Makes BASE, once: a minimal Debian 12 with the packages $1, separated by commas; the rest are arguments of mmdebstrap.
make_base() {
    local included=$1
    shift
    [[ ! -s $BASE ]] || return 0
    # By its name it knows what it is to make.
    rm -rf "$FOLDER/new.tar"
    mmdebstrap --quiet --variant=minbase --include="$included" "$@" bookworm "$FOLDER/new.tar"
    mv "$FOLDER/new.tar" "$BASE"
}

# Unpacks it into FILES, as on any fresh machine.
unpack_base() {
    mkdir "$FILES"
    tar --extract --file "$BASE" --directory "$FILES" --numeric-owner
    echo holdfast-proof >"$FILES/etc/hostname"
    mkdir "$FILES/proof"
    cp tests/service/*.py "$FILES/proof/"
}
