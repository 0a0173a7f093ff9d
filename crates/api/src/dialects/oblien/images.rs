//! `/workspace/images`.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use serde_json::{Value, json};
use skerry_control::internal_api::ImageInfo;

use super::{
    Oblien,
    error_body::Problem,
    wire::{Image, ImageCategory, ImagesQuery},
};
use crate::{ApiState, auth::Authenticated, extract::QueryOf};

/// The images of the node; `search` looks in name and description, `category` `all` means no filter.
/// The categories are those of all images, whatever was searched.
pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    QueryOf { value: query, .. }: QueryOf<ImagesQuery, Oblien>,
) -> Result<Json<Value>, Problem> {
    let images = state.control.list_images(&caller).await?;
    let categories: BTreeSet<&str> = images.iter().map(|image| image.category.as_str()).collect();
    let categories: Vec<ImageCategory> = categories
        .into_iter()
        .map(|id| ImageCategory { id: id.to_owned(), label: capitalised(id) })
        .collect();
    let shown: Vec<Image> =
        images.iter().filter(|image| matches(image, &query)).map(object).collect();
    Ok(Json(json!({ "success": true, "images": shown, "categories": categories })))
}

fn matches(image: &ImageInfo, query: &ImagesQuery) -> bool {
    let category = query.category.as_deref().unwrap_or("all");
    let wanted = query.search.as_deref().unwrap_or("").trim().to_lowercase();
    (category == "all" || category == image.category)
        && [&image.name.0, &image.description, &image.category]
            .iter()
            .any(|text| text.to_lowercase().contains(&wanted))
}

fn object(image: &ImageInfo) -> Image {
    Image {
        id: image.name.0.clone(),
        image: image.name.0.clone(),
        label: image.name.0.clone(),
        desc: image.description.clone(),
        category: image.category.clone(),
    }
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
