#!/bin/sh
# Installs, upgrades, removes and purges the package, in a system that is there for nothing else:
#   check.sh OLDER.deb NEWER.deb
set -eu

export DEBIAN_FRONTEND=noninteractive
config=/etc/moai-agent/agent.toml
state=/var/lib/moai-agent
enabled=/etc/systemd/system/multi-user.target.wants/moai-agent.service

say() {
	echo "check: $*"
}

die() {
	say "$*" >&2
	exit 1
}

say "install"
apt-get install --yes --no-install-recommends "$1"
moai-agent --version
id moai-agent | grep -q tss || die "the agent's user may not use the TPM"
[ -L "$enabled" ] || die "the service is not enabled"
systemd-analyze verify --man=no moai-agent.service || die "systemd does not understand the unit"
if problems=$(moai-agent config check 2>&1); then
	die "a configuration without an identity is accepted"
fi
echo "$problems" | grep -q "identity" || die "$problems"
for page in moai-agent moai-agent-provision moai-agent-task-rotate; do
	[ -f "/usr/share/man/man1/$page.1.gz" ] || [ -f /etc/dpkg/dpkg.cfg.d/no-manual ] ||
		die "there is no manual page of $page"
done
# What systemd does when it boots.
systemd-tmpfiles --create moai-agent.conf
[ "$(stat -c '%U %a' "$state")" = "moai-agent 700" ] || die "$state is not the agent's alone"

say "upgrade"
echo "# changed by the owner" >>"$config"
echo sealed >"$state/root.sealed"
systemctl disable moai-agent.service
apt-get install --yes --no-install-recommends "$2"
grep -q "changed by the owner" "$config" || die "the configuration was lost in the upgrade"
[ "$(cat "$state/root.sealed")" = sealed ] || die "the state was lost in the upgrade"
[ ! -e "$enabled" ] || die "the upgrade has enabled a service that was disabled"

say "remove"
apt-get remove --yes moai-agent
[ ! -e /usr/bin/moai-agent ] || die "the program is still there"
grep -q "changed by the owner" "$config" || die "the configuration was lost in the removal"
[ "$(cat "$state/root.sealed")" = sealed ] || die "the state was lost in the removal"

say "purge"
apt-get purge --yes moai-agent
left=$(find / -xdev -path /tmp -prune -o -name '*moai*' -print)
[ -z "$left" ] || die "left behind: $left"
say "nothing is left; the user stays, as Debian has it"
