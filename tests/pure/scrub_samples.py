"""One made-up secret of each kind, put together here so that no scanner takes this file for a leak."""

from __future__ import annotations

import random
import string

ALNUM = string.ascii_letters + string.digits
UPPER = string.ascii_uppercase + string.digits
LOWER = string.ascii_lowercase + string.digits
BASE32 = string.ascii_uppercase + "234567"
HEX = "0123456789abcdef"
BASE64 = ALNUM + "+/"


def noise(alphabet: str, length: int, seed: int = 0) -> str:
    """The same random text each time."""
    chooser = random.Random(f"{alphabet}{length}{seed}")
    return "".join(chooser.choice(alphabet) for _ in range(length))


def _plain(rule_id: str, secret: str) -> tuple[str, str, str]:
    return rule_id, secret, secret


def _in(rule_id: str, before: str, secret: str, after: str = "") -> tuple[str, str, str]:
    return rule_id, f"{before}{secret}{after}", secret


def _block(name: str, body: str) -> str:
    return f"-----BEGIN {name}-----\n{body}\n-----END {name}-----"


_BODY = "\n".join(noise(BASE64, 64, line) for line in range(6))

SAMPLES: list[tuple[str, str, str]] = [
    _plain("private-key", _block("EC PRIVATE KEY", _BODY)),
    _plain("private-key-head", f"-----BEGIN PRIVATE KEY-----\n{_BODY}"),
    _plain("private-key-tail", f"{_BODY}\n-----END PRIVATE KEY-----"),
    _plain(
        "putty-private-key",
        f"PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\n{noise(BASE64, 48)}\nPrivate-MAC: {noise(HEX, 64)}",
    ),
    _plain("age-secret-key", "AGE-SECRET-KEY-1" + noise("023456789ACDEFGHJKLMNPQRSTUVWXYZ", 58)),
    _plain("aws-access-key-id", "AKIA" + noise(BASE32, 16)),
    _in("aws-secret-access-key", "aws_secret_access_key = ", noise(BASE64, 40, 2)),
    _in("aws-session-token", "AWS_SESSION_TOKEN=", noise(BASE64, 200) + "=="),
    _plain("aws-bedrock-api-key", "ABSK" + noise(BASE64, 120)),
    _plain("gcp-api-key", "AIza" + noise(ALNUM + "_-", 34) + "x"),
    _plain("google-oauth-token", "ya29." + noise(ALNUM + "_-", 60)),
    _plain("google-oauth-client-secret", "GOCSPX-" + noise(ALNUM, 28)),
    _in("azure-account-key", "DefaultEndpointsProtocol=https;AccountKey=", noise(BASE64, 86) + "=="),
    _in("azure-sas-signature", "https://a.blob.core.windows.net/c?sv=2024&sig=", noise(ALNUM, 43) + "%3D"),
    _plain("azure-client-secret", noise(ALNUM, 3) + "8Q~" + noise(ALNUM + "_.-", 33) + "a"),
    _plain("azure-devops-token", noise(ALNUM, 76) + "AZDO" + noise(ALNUM, 4)),
    _plain("digitalocean-token", "dop_v1_" + noise(HEX, 64)),
    _plain("alibaba-access-key-id", "LTAI" + noise(ALNUM, 20)),
    _plain("tencent-secret-id", "AKID" + noise(ALNUM, 32)),
    _plain("cloudflare-origin-ca-key", f"v1.0-{noise(HEX, 24)}-{noise(HEX, 146)}"),
    _plain("heroku-api-key", "HRKU-" + noise(ALNUM + "_-", 60)),
    _plain("fly-token", "fo1_" + noise(ALNUM + "_-", 43)),
    _plain("netlify-token", "nfp_" + noise(ALNUM, 40)),
    _plain("tailscale-key", f"tskey-auth-{noise(ALNUM, 16)}-{noise(ALNUM, 32)}"),
    _plain("github-token", "ghp_" + noise(ALNUM, 36)),
    _plain("github-fine-grained-token", f"github_pat_{noise(ALNUM, 22)}_{noise(ALNUM, 59)}"),
    _plain("gitlab-token", "glpat-" + noise(ALNUM, 20)),
    _plain("gitlab-runner-registration-token", "GR1348941" + noise(ALNUM, 20)),
    _plain("atlassian-token", "ATATT3" + noise(ALNUM + "_-", 180)),
    _plain("docker-token", "dckr_pat_" + noise(ALNUM + "_-", 27)),
    _plain("npm-token", "npm_" + noise(ALNUM, 36)),
    _in("npmrc-auth", "//registry.npmjs.org/:_authToken=", noise(HEX, 36)),
    _plain("pypi-token", "pypi-" + noise(ALNUM + "_-", 160)),
    _plain("rubygems-token", "rubygems_" + noise(HEX, 48)),
    _plain("crates-io-token", "cio" + noise(ALNUM, 32)),
    _plain("sonar-token", "squ_" + noise(HEX, 40)),
    _plain("buildkite-token", "bkua_" + noise(ALNUM, 40)),
    _plain("terraform-cloud-token", f"{noise(ALNUM, 14)}.atlasv1.{noise(ALNUM, 67)}"),
    _plain("vault-token", "hvs." + noise(ALNUM, 90)),
    _plain("doppler-token", "dp.pt." + noise(ALNUM, 43)),
    _plain("pulumi-token", "pul-" + noise(HEX, 40)),
    _plain("onepassword-service-account-token", "ops_eyJ" + noise(ALNUM, 250)),
    _plain("anthropic-api-key", "sk-ant-api03-" + noise(ALNUM + "_-", 93) + "AA"),
    _plain("openrouter-api-key", "sk-or-v1-" + noise(HEX, 64)),
    _plain("openai-api-key", "sk-proj-" + noise(ALNUM, 120)),
    _plain("huggingface-token", "hf_" + noise(ALNUM, 34)),
    _plain("groq-api-key", "gsk_" + noise(ALNUM, 52)),
    _plain("xai-api-key", "xai-" + noise(ALNUM, 80)),
    _plain("perplexity-api-key", "pplx-" + noise(ALNUM, 48)),
    _plain("replicate-api-token", "r8_" + noise(ALNUM, 37)),
    _plain("nvidia-api-key", "nvapi-" + noise(ALNUM, 64)),
    _plain("langsmith-api-key", f"lsv2_pt_{noise(HEX, 32)}_{noise(HEX, 10)}"),
    _plain("pinecone-api-key", "pcsk_" + noise(ALNUM, 70)),
    _plain("jina-api-key", f"jina_{noise(HEX, 32)}{noise(ALNUM, 28)}"),
    _plain("tavily-api-key", "tvly-dev-" + noise(ALNUM, 32)),
    _plain("databricks-token", "dapi" + noise(HEX, 32)),
    _plain("planetscale-token", "pscale_tkn_" + noise(ALNUM, 43)),
    _plain("supabase-key", "sbp_" + noise(HEX, 40)),
    _plain("slack-token", f"xoxb-{noise(string.digits, 12)}-{noise(ALNUM, 24)}"),
    _in(
        "slack-webhook",
        "https://hooks.slack.com/services/",
        f"T{noise(UPPER, 8)}/B{noise(UPPER, 8)}/{noise(ALNUM, 24)}",
    ),
    _in("discord-webhook", f"https://discord.com/api/webhooks/{noise(string.digits, 18)}/", noise(ALNUM, 68)),
    _in("discord-bot-token", "discord bot ", f"M{noise(ALNUM, 25)}.{noise(ALNUM, 6)}.{noise(ALNUM, 38)}"),
    _in(
        "teams-webhook",
        "https://x.webhook.office.com/webhookb2/",
        f"{noise(HEX, 36)}@{noise(HEX, 36)}/IncomingWebhook/{noise(HEX, 32)}/{noise(HEX, 36)}",
    ),
    _plain("telegram-bot-token", f"1{noise(string.digits, 9)}:AA{noise(ALNUM, 33)}"),
    _plain("stripe-key", "sk_live_" + noise(ALNUM, 24)),
    _plain("webhook-signing-secret", "whsec_" + noise(ALNUM, 32)),
    _plain("square-token", "sq0atp-" + noise(ALNUM, 22)),
    _plain("shopify-token", "shpat_" + noise(HEX, 32)),
    _plain("facebook-token", "EAAB" + noise(ALNUM, 160)),
    _in("twilio-api-key", "twilio ", "SK" + noise(HEX, 32)),
    _plain("sendgrid-api-key", f"SG.{noise(ALNUM, 22)}.{noise(ALNUM, 43)}"),
    _plain("mailgun-api-key", "key-" + noise(HEX, 32)),
    _plain("mailchimp-api-key", noise(HEX, 32) + "-us12"),
    _plain("brevo-api-key", f"xkeysib-{noise(HEX, 64)}-{noise(ALNUM, 16)}"),
    _plain("airtable-token", f"pat{noise(ALNUM, 14)}.{noise(HEX, 64)}"),
    _plain("notion-token", "ntn_" + noise(ALNUM, 46)),
    _plain("linear-token", "lin_api_" + noise(ALNUM, 40)),
    _plain("figma-token", "figd_" + noise(ALNUM, 40)),
    _plain("postman-api-key", f"PMAK-{noise(HEX, 24)}-{noise(HEX, 34)}"),
    _plain("dropbox-token", "sl." + noise(ALNUM, 140)),
    _plain("grafana-token", "glsa_" + noise(ALNUM, 41)),
    _plain("new-relic-key", "NRAK-" + noise(UPPER, 27)),
    _in("datadog-key", "DD_API_KEY=", noise(HEX, 32, 5)),
    _plain("sentry-token", "sntrys_" + noise(ALNUM, 120)),
    _plain("posthog-key", "phx_" + noise(ALNUM, 46)),
    _plain("jwt", f"eyJ{noise(ALNUM, 30)}.eyJ{noise(ALNUM, 60)}.{noise(ALNUM, 43)}"),
    _in("url-password", "amqp://worker:", noise(ALNUM, 12) + "!", "@broker:5672/"),
    _in("basic-authorization", "Authorization: Basic ", noise(BASE64, 32)),
    _in("bearer-token", "X-Forwarded: Bearer ", noise(ALNUM, 40)),
    _in("curl-user-password", "curl -s -u admin:", "S3cr3t" + noise(ALNUM, 8)),
    _plain("password-hash", "$2b$12$" + noise(ALNUM, 53)),
    _in("connection-string-password", "Server=db;Uid=sa;Pwd=", noise(ALNUM, 7) + "!"),
    _in("password-assignment", 'PASSWORD = "', "Tr0ub4dor&3" + noise(ALNUM, 4), '"'),
    _in("generic-api-key", "api-key: ", noise(ALNUM, 32, 9)),
]
