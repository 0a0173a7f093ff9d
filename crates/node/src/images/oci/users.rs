//! Who a number is in an image, from its own `/etc/passwd`: commands are started by login name.

/// The login name of the configuration's user, which is `name`, `uid`, or either with `:group`. The
/// group is that of the login, whatever was written; a number that no login has stays a number.
pub(super) fn login_of(user: &str, passwd: &str) -> String {
    let user = user.split(':').next().unwrap_or_default();
    if user.is_empty() || user == "0" {
        return "root".to_owned();
    }
    if !user.bytes().all(|byte| byte.is_ascii_digit()) {
        return user.to_owned();
    }
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?);
        (uid == user && !name.is_empty()).then_some(name)
    });
    named.unwrap_or(user).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_becomes_the_login_that_has_it() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nnode:x:1000:1000::/home/node:/bin/sh\n";
        for (user, login) in [
            ("node", "node"),
            ("1000", "node"),
            ("1000:50", "node"),
            ("node:staff", "node"),
            ("0", "root"),
            ("0:0", "root"),
            ("root", "root"),
            ("4711", "4711"),
        ] {
            assert_eq!(login_of(user, passwd), login, "{user}");
        }
    }
}
