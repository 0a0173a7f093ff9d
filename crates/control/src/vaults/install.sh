# $1: the certificate's own file, $2: the system's bundle. The certificate comes by standard input.
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
umask 022
own=$1
bundle=$2
pem=$(cat) || exit 1
mark=$(printf '%s\n' "$pem" | sed -n 2p)
[ -n "$mark" ] || exit 1

# What update-ca-certificates(8) puts into the bundle when somebody runs it.
if [ "$(cat "$own" 2>/dev/null)" != "$pem" ]; then
    mkdir -p "${own%/*}" && printf '%s\n' "$pem" >"$own" || exit 1
fi
# Debian, Alpine and others; Red Hat's; one that a program brought.
if [ ! -e "$bundle" ]; then
    mkdir -p "${bundle%/*}" || exit 1
    for other in /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
        if [ -f "$other" ]; then
            cat "$other" >"$bundle"
            break
        fi
    done
fi
for file in "$bundle" /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
    if [ "$file" = "$bundle" ] || { [ -f "$file" ] && [ ! -L "$file" ]; }; then
        grep -qF -- "$mark" "$file" 2>/dev/null || printf '\n%s\n' "$pem" >>"$file" || exit 1
    fi
done
# OpenSSL's directory of certificates by name.
if command -v openssl >/dev/null 2>&1; then
    hash=$(openssl x509 -hash -noout -in "$own" 2>/dev/null)
    if [ -n "$hash" ] && [ ! -e "/etc/ssl/certs/$hash.0" ]; then
        ln -s "$own" "/etc/ssl/certs/$hash.0"
    fi
fi
# Java's.
store=/etc/ssl/certs/java/cacerts
if [ -f "$store" ] && command -v keytool >/dev/null 2>&1; then
    # shellcheck disable=SC2094
    if ! keytool -list -keystore "$store" -storepass changeit -alias skerry-vaults >/dev/null 2>&1; then
        keytool -importcert -noprompt -keystore "$store" -storepass changeit -alias skerry-vaults \
            -file "$own" >/dev/null 2>&1
    fi
fi
exit 0
