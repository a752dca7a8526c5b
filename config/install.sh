#!/bin/sh
# Installs Holdfast from this archive on a machine with systemd, below /usr/local and /etc. Run it again with a newer archive to
# upgrade: configuration and data stay. Debian, Ubuntu and Raspberry Pi OS are better served by the package.
#
#   sudo ./install.sh
#   sudo ./install.sh --uninstall            keeps /etc/holdfast and /var/lib/holdfast
#   sudo ./install.sh --uninstall --purge    keeps nothing
set -eu
cd "$(dirname "$0")"

PREFIX=/usr/local
UNIT=/etc/systemd/system/holdfast.service
PORTS=/etc/systemd/system/holdfast.service.d/ports.conf
SYSUSERS=/etc/sysusers.d/holdfast.conf
TMPFILES=/etc/tmpfiles.d/holdfast.conf
MODULES=/etc/modules-load.d/holdfast.conf
RULES=/etc/udev/rules.d/60-holdfast.rules
DOC=$PREFIX/share/doc/holdfast

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '/^# Installs/,/^set -/{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

is_running() {
    [ -d /run/systemd/system ]
}

put() { # mode, source, destination
    install -D -m "$1" "$2" "$3"
}

install_all() {
    [ -x bin/holdfast ] || fail "there is no bin/holdfast beside this script; run it in the unpacked archive"
    command -v systemctl >/dev/null 2>&1 || fail "no systemd here; bin/holdfast runs without: holdfast run --config FILE"
    # Before anything is changed: an archive for another processor, or a C library that is too old.
    bin/holdfast --version >/dev/null || fail "this machine cannot run bin/holdfast; is this the archive for $(uname -m)?"
    if [ -e /usr/bin/holdfast ]; then
        fail "/usr/bin/holdfast is there already, from a package; remove that first (it keeps configuration and data), or upgrade it"
    fi

    if [ -e $UNIT ]; then
        is_upgrade=yes
    else
        is_upgrade=no
    fi
    # Beside the running one and then in its place: its file is busy.
    put 755 bin/holdfast $PREFIX/bin/.holdfast.new
    mv -f $PREFIX/bin/.holdfast.new $PREFIX/bin/holdfast
    sed "s|/usr/bin/holdfast|$PREFIX/bin/holdfast|" config/holdfast.service >.unit
    put 644 .unit $UNIT
    rm -f .unit
    # The operator may have emptied it, which turns the ports off.
    if [ ! -e $PORTS ] || [ -s $PORTS ]; then
        put 644 config/holdfast-ports.conf $PORTS
    fi
    put 644 config/holdfast.sysusers $SYSUSERS
    put 644 config/holdfast.tmpfile $TMPFILES
    put 644 config/holdfast.modules $MODULES
    put 644 config/holdfast.udev $RULES
    for page in man1/*; do
        put 644 "$page" "$PREFIX/share/man/$page"
    done
    put 644 completions/holdfast.bash $PREFIX/share/bash-completion/completions/holdfast
    put 644 completions/_holdfast $PREFIX/share/zsh/site-functions/_holdfast
    put 644 completions/holdfast.fish $PREFIX/share/fish/vendor_completions.d/holdfast.fish
    rm -rf $DOC
    mkdir -p $DOC
    cp -r doc/. $DOC/
    # Always the newest, with settings that an older configuration does not name.
    put 644 config/holdfast.toml $DOC/holdfast.toml
    [ -e /etc/holdfast/holdfast.toml ] || put 640 config/holdfast.toml /etc/holdfast/holdfast.toml

    systemd-sysusers $SYSUSERS
    systemd-tmpfiles --create $TMPFILES
    if ! is_running; then
        [ $is_upgrade = yes ] || systemctl enable holdfast.service
        echo "Installed; the service starts with the system."
        return
    fi
    # Where there is no such driver there is no such port.
    for loader in /usr/lib/systemd/systemd-modules-load /lib/systemd/systemd-modules-load; do
        [ ! -x $loader ] || { $loader $MODULES >/dev/null 2>&1 || true; break; }
    done
    # It may have read them before there was the group that they name, and reads them again only if they have changed.
    touch $RULES
    udevadm control --reload >/dev/null 2>&1 || true
    udevadm trigger --subsystem-match=i2c-dev >/dev/null 2>&1 || true
    systemctl daemon-reload
    if [ $is_upgrade = yes ]; then
        # Whoever stopped or disabled it wants it so.
        systemctl try-restart holdfast.service || fail "upgraded, but the service does not start: journalctl -u holdfast"
        echo "Upgraded to $($PREFIX/bin/holdfast --version)."
        return
    fi
    systemctl enable --now holdfast.service || fail "installed, but the service does not start: journalctl -u holdfast"
    echo "Installed and running. Configure it in /etc/holdfast/holdfast.toml, then: systemctl reload holdfast"
}

uninstall_all() {
    if is_running; then
        systemctl disable --now holdfast.service 2>/dev/null || true
    fi
    rm -f $PREFIX/bin/holdfast $UNIT $PORTS $SYSUSERS $TMPFILES $MODULES $RULES $PREFIX/share/man/man1/holdfast.1.gz \
        $PREFIX/share/man/man1/holdfast-*.1.gz $PREFIX/share/bash-completion/completions/holdfast \
        $PREFIX/share/zsh/site-functions/_holdfast $PREFIX/share/fish/vendor_completions.d/holdfast.fish \
        /etc/systemd/system/multi-user.target.wants/holdfast.service
    rmdir /etc/systemd/system/holdfast.service.d 2>/dev/null || true
    rm -rf $DOC
    ! is_running || systemctl daemon-reload
    if [ "$1" = purge ]; then
        rm -rf /etc/holdfast /var/lib/holdfast
        echo "Removed, with configuration and data. The user holdfast is left."
    else
        echo "Removed. Configuration and data are left in /etc/holdfast and /var/lib/holdfast."
    fi
}

action=install data=keep
for argument; do
    case $argument in
    --uninstall) action=uninstall ;;
    --purge) data=purge ;;
    *) usage ;;
    esac
done
[ "$action-$data" != install-purge ] || usage
[ "$(id -u)" -eq 0 ] || fail "has to run as root: sudo ./install.sh"
if [ "$action" = install ]; then
    install_all
else
    uninstall_all "$data"
fi
