# Completions of pvc for fish: pvc completion fish | source

function __pvc_complete
    set -l line (commandline -cp | string collect)
    for item in (env PVC_COMPLETE=fish COMP_LINE="$line" pvc 2>/dev/null)
        set -l parts (string split -m 2 \t -- $item)
        switch $parts[1]
            case file
                __fish_complete_path (string escape -- $parts[2])
            case dir
                __fish_complete_directories (string escape -- $parts[2])
            case '*'
                printf '%s\t%s\n' $parts[2] $parts[3]
        end
    end
end

complete -c pvc -f -a '(__pvc_complete)'
