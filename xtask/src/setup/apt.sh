# Runs a command while a policy forbids Debian's packages to start their services.
#
#   sh apt.sh POLICY COMMAND...
#
# It is a shell script because a shell restores the policy on Ctrl-C as well.

policy=$1
saved=$policy.natctl-saved
marker='# Put here by `cargo xtask setup` while it installs packages.'
shift

restore() {
    if [ -e "$saved" ] || [ -L "$saved" ]; then
        mv -f "$saved" "$policy"
    elif grep -qsxF "$marker" "$policy"; then
        rm -f "$policy"
    fi
}

# What a killed run may have left.
restore

trap restore EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -e "$policy" ] || [ -L "$policy" ]; then
    mv -f "$policy" "$saved" || exit
fi
printf '#!/bin/sh\n%s\nexit 101\n' "$marker" >"$policy" || exit
chmod 755 "$policy" || exit

"$@"
