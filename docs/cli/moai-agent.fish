# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_moai_agent_global_optspecs
    string join \n c/config= h/help V/version
end

function __fish_moai_agent_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_moai_agent_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_moai_agent_using_subcommand
    set -l cmd (__fish_moai_agent_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c moai-agent -n "__fish_moai_agent_needs_command" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_needs_command" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -s V -l version -d 'Print version'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "provision" -d 'Make the root secret and the identity key; once for each robot'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "run" -d 'Run the agent in the foreground, as systemd does'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "reload" -d 'Have the running agent read its configuration again, as `systemctl reload` does. A file with problems changes nothing, and no session is dropped; what waits for a restart is named'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "status" -d 'Show what the agent is doing, or why it is not running'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "reseal" -d 'Seal the root secret to the boot measurements of this moment, before or after a change that no signed policy covers'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "recover" -d 'Get at the root secret when its custodian refuses, and seal it anew to this machine'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "rotate" -d 'Begin a new epoch'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "task" -d 'The tasks of the running agent'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "session" -d 'The sessions of the running agent'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "emergency" -d 'Wipe the keys of every session now, have the server delete them, and begin a new epoch. Jobs that wait end with the error `revoked`; tasks go on with new sessions'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "remote" -d 'Give a robot of the fleet a command, over the broker of its uplink. Needs no configuration: run it where the operator\'s key is kept'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "policy" -d 'Boot states that the fleet\'s policy key allows'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "identity" -d 'The robot\'s identity key and certificate'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "escrow" -d 'Copies of the root secret for the day its custodian is lost'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "audit" -d 'The log of what happened to root secret, sessions and uplink'
complete -c moai-agent -n "__fish_moai_agent_needs_command" -f -a "config" -d 'Look at the configuration'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand provision" -l ca -d 'For tests: certificate (PEM) of an authority that signs the robot\'s certificate at once' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand provision" -l ca-key -d 'For tests: private key (PEM) of that authority' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand provision" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand provision" -l escrow -d 'Also wrap the root secret for the recipient of the section [escrow]'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand provision" -l no-recovery-code -d 'Make no recovery code: if the boot measurements change and no signed policy covers the change, the root secret is lost'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand provision" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand run" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand run" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand reload" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand reload" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand status" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand status" -l json -d 'For programs: the status as JSON'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand status" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand reseal" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand reseal" -l new-recovery-code -d 'Also make a new recovery code; the old one opens nothing any more'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand reseal" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand recover" -l from-escrow -d 'Open this escrow file instead of asking for the recovery code' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand recover" -l escrow-key -d 'Private key file for an escrow to an offline key' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand recover" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand recover" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand rotate; and not __fish_seen_subcommand_from root" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand rotate; and not __fish_seen_subcommand_from root" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand rotate; and not __fish_seen_subcommand_from root" -f -a "root" -d 'Make a new root secret, wrap the live sessions under it, and destroy the key of the old one: every older copy of the disk is worthless from then on'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand rotate; and __fish_seen_subcommand_from root" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand rotate; and __fish_seen_subcommand_from root" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and not __fish_seen_subcommand_from list rotate close revoke" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and not __fish_seen_subcommand_from list rotate close revoke" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and not __fish_seen_subcommand_from list rotate close revoke" -f -a "list" -d 'Show every task with its sessions'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and not __fish_seen_subcommand_from list rotate close revoke" -f -a "rotate" -d 'Go on with new keys as soon as they are ready; no job waits for them'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and not __fish_seen_subcommand_from list rotate close revoke" -f -a "close" -d 'Take nothing more, answer what waits, and end'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and not __fish_seen_subcommand_from list rotate close revoke" -f -a "revoke" -d 'Wipe its keys now: jobs that wait end with the error `revoked`. The task goes on with a new session'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from rotate" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from rotate" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from close" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from close" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from revoke" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from revoke" -l stay-closed -d 'End the task too'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand task; and __fish_seen_subcommand_from revoke" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand session; and not __fish_seen_subcommand_from revoke" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand session; and not __fish_seen_subcommand_from revoke" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand session; and not __fish_seen_subcommand_from revoke" -f -a "revoke" -d 'Wipe its keys now: jobs that wait end with the error `revoked`. Its task goes on with a new session'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand session; and __fish_seen_subcommand_from revoke" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand session; and __fish_seen_subcommand_from revoke" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand emergency" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand emergency" -l yes -d 'Do not ask'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand emergency" -l stay-closed -d 'End the tasks too: they stay closed until somebody opens them'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand emergency" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l robot -d 'The robot: `tenant.robot`' -r
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l key -d 'The operator\'s private key: Ed25519 in PEM (PKCS #8)' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l valid-minutes -d 'How long the command counts, in minutes' -r
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -s o -l out -d 'Only write the signed command to this file, to be published as it is, retained, on `moai/v1/down/ROBOT/command`' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l host -d 'The broker\'s host name, as in its certificate' -r
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l port -d 'The broker\'s port' -r
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l ca -d 'Authority (PEM) that signed the broker\'s and the robots\' certificates' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l robots-ca -d 'Authority (PEM) of the robots\' certificates, if it is another one' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l certificate -d 'The operator\'s certificate chain (PEM) for the broker' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l certificate-key -d 'Its private key (PEM)' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -l wait-seconds -d 'How long to wait for the robot\'s report, in seconds' -r
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -f -a "rotate-task" -d 'Go on with new keys as soon as they are ready; no job waits for them'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -f -a "close-task" -d 'Take nothing more, answer what waits, and end'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -f -a "revoke-task" -d 'Wipe a task\'s keys now'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -f -a "revoke-session" -d 'Wipe a session\'s keys now'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and not __fish_seen_subcommand_from rotate-task close-task revoke-task revoke-session emergency" -f -a "emergency" -d 'Wipe the keys of every session now, and begin a new epoch'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from rotate-task" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from rotate-task" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from close-task" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from close-task" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from revoke-task" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from revoke-task" -l stay-closed -d 'End the task too'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from revoke-task" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from revoke-session" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from revoke-session" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from emergency" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from emergency" -l stay-closed -d 'End the tasks too'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand remote; and __fish_seen_subcommand_from emergency" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and not __fish_seen_subcommand_from show sign" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and not __fish_seen_subcommand_from show sign" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and not __fish_seen_subcommand_from show sign" -f -a "show" -d 'Show the boot measurements, what the root secret is bound to, and which signed policies are at hand'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and not __fish_seen_subcommand_from show sign" -f -a "sign" -d 'Sign a boot state. Needs no TPM and no configuration: run it where the policy key is kept'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and __fish_seen_subcommand_from sign" -l key -d 'Private policy key: ECDSA P-256 in PEM (PKCS #8 or SEC 1)' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and __fish_seen_subcommand_from sign" -l measurements -d 'The boot state, as `policy show` prints it on a robot that runs the new firmware: "sha256:7=HEX"' -r
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and __fish_seen_subcommand_from sign" -s o -l out -d 'Where to write the signed policy; standard output if absent' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and __fish_seen_subcommand_from sign" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand policy; and __fish_seen_subcommand_from sign" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and not __fish_seen_subcommand_from csr install enrolment" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and not __fish_seen_subcommand_from csr install enrolment" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and not __fish_seen_subcommand_from csr install enrolment" -f -a "csr" -d 'Print a certificate request for the identity key, which is made if there is none'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and not __fish_seen_subcommand_from csr install enrolment" -f -a "install" -d 'Take the certificate chain that an authority issued for the request'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and not __fish_seen_subcommand_from csr install enrolment" -f -a "enrolment" -d 'Print the record by which a server that requires attestation knows this robot'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and __fish_seen_subcommand_from csr" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and __fish_seen_subcommand_from csr" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and __fish_seen_subcommand_from install" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and __fish_seen_subcommand_from install" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and __fish_seen_subcommand_from enrolment" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand identity; and __fish_seen_subcommand_from enrolment" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand escrow; and not __fish_seen_subcommand_from keygen" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand escrow; and not __fish_seen_subcommand_from keygen" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand escrow; and not __fish_seen_subcommand_from keygen" -f -a "keygen" -d 'Make a key pair to keep offline: the public half goes to the robots, the private half into a safe'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand escrow; and __fish_seen_subcommand_from keygen" -s o -l out -d 'Where to write the private key; the public key goes beside it, with `.pub` behind the name' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand escrow; and __fish_seen_subcommand_from keygen" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand escrow; and __fish_seen_subcommand_from keygen" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and not __fish_seen_subcommand_from verify show" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and not __fish_seen_subcommand_from verify show" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and not __fish_seen_subcommand_from verify show" -f -a "verify" -d 'Check that no entry was removed, changed, moved or added. Asks the running agent, or opens the root secret where none runs'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and not __fish_seen_subcommand_from verify show" -f -a "show" -d 'Print the entries, oldest first, without checking them'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and __fish_seen_subcommand_from verify" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and __fish_seen_subcommand_from show" -l json -d 'For programs: each entry as the log has it, a line of JSON'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand audit; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand config; and not __fish_seen_subcommand_from check" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand config; and not __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand config; and not __fish_seen_subcommand_from check" -f -a "check" -d 'Check the configuration and the files it names; change nothing'
complete -c moai-agent -n "__fish_moai_agent_using_subcommand config; and __fish_seen_subcommand_from check" -s c -l config -d 'Configuration file' -r -F
complete -c moai-agent -n "__fish_moai_agent_using_subcommand config; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
